"""The studio: one page in the service where people generate, edit, compare, train and reckon, and see what they do."""
