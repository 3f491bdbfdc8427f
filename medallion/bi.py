"""What to type into a BI tool."""

from __future__ import annotations

from rich.console import Console

from warehouse.settings import ConnectionInfo

SCHEMAS = "gold, ops"
MASK = "********"
STEPS = {
    "postgresql": "PostgreSQL, for whatever else speaks it",
    "power_bi": "Power BI: Get data, PostgreSQL database (dashboards/powerbi.md)",
    "metabase": "Metabase: Admin settings, Databases, Add a database (dashboards/metabase.md)",
}


def values(connection: ConnectionInfo, *, show_password: bool) -> dict[str, dict[str, str]]:
    """Return for each tool what it asks for, in its own words."""
    password = connection.password if show_password else MASK
    port = str(connection.port)
    # An address of IPv6 has colons of its own.
    host = f"[{connection.host}]" if ":" in connection.host else connection.host
    encrypted = "off" if connection.sslmode in {"disable", "allow"} else "on"
    return {
        "postgresql": {
            "host": connection.host,
            "port": port,
            "database": connection.database,
            "user": connection.user,
            "password": password,
            "sslmode": connection.sslmode,
            "schemas": SCHEMAS,
        },
        "power_bi": {
            "Server": f"{host}:{port}",
            "Database": connection.database,
            "Data Connectivity mode": "Import",
            "User name": connection.user,
            "Password": password,
            "Encrypt connections": encrypted,
        },
        "metabase": {
            "Database type": "PostgreSQL",
            "Host": connection.host,
            "Port": port,
            "Database name": connection.database,
            "Username": connection.user,
            "Password": password,
            "Schemas": f"Only these: {SCHEMAS}",
            "Use a secure connection (SSL)": encrypted,
        },
    }


def show(console: Console, tools: dict[str, dict[str, str]]) -> None:
    """Print it tool by tool. No line is broken, for each value is to be copied."""
    width = max(len(name) for asked in tools.values() for name in asked)
    for tool, asked in tools.items():
        console.print(STEPS[tool], style="bold", soft_wrap=True)
        for name, value in asked.items():
            line = f"  {name:{width}}  {value}"
            console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
        console.print()
