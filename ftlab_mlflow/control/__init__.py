"""What is said: the control protocol. Imports no torch, transformers, streamlit or LLM SDK."""
