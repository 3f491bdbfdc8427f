"""Streamlit with what the page needs already loaded: its first viewer waits as long as others."""

from streamlit.web import cli

from dashboards import tabs  # noqa: F401

if __name__ == "__main__":
    cli.main(prog_name="streamlit")
