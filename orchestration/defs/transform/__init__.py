"""From bronze to the reports: the models and checks of dbt, and when they run."""
