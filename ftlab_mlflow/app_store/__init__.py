"""The app's own database: what the dashboard keeps about people. What is kept about runs is in their tags."""

from ftlab_mlflow.app_store.preferences import Preferences
from ftlab_mlflow.app_store.store import AppStore

__all__ = ["AppStore", "Preferences"]
