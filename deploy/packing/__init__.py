"""A model in fewer bytes for the download: entropy-coded, checked, decoded by numpy alone."""
