"""Figures in Plotly's own vocabulary (https://plotly.com/javascript/reference/) as plain dictionaries.

Colours are the names of CSS variables (``"--accent"``), which the page's script replaces by what the theme says.
"""
