"""Who serves language models, one file each. They are found by the entry points `ftlab_mlflow.providers`."""
