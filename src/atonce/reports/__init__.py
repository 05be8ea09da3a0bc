"""Reports: pictures, plots and pages made from runs and records."""
