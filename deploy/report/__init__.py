"""Records and measurements in; HTML, Markdown, CSV and JSON out."""
