"""What the runs say: reads over MLflow's run data and what is computed from them. Nothing here writes."""
