"""Result files as pages: tables, plots, HTML and Markdown; measures nothing."""
