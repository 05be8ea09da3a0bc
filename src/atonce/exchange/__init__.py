"""Exchange: models in from the gallery, runs, folders and the hub. Nothing that is loaded is ever executed."""
