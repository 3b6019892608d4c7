"""From committed results to the documents: tables and pictures."""
