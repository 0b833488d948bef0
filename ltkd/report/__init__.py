"""Figures, tables, the comparison with the paper, and the pages that carry them."""
