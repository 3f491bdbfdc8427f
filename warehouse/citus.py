"""Spreads bronze over the nodes, where the database is on a Citus coordinator.

dbt spreads its own tables (`distributed_by` in dbt_project.yml). All others are small, and stay on
the coordinator as they are.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import asyncpg

from warehouse.settings import LOGIN_ROLES, WarehouseError

# A string: the type is generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

DISTRIBUTED: Final = ("bronze.coinbase_trades_raw",)
"""Tables that are spread by their column product_id."""

# The coordinator connects to the workers as whoever asks it, the owner of its functions included.
# Without a password, that is possible only where pg_hba.conf lets the nodes in among themselves.
_ROLES: Final = ("medallion_owner", *LOGIN_ROLES)
_LET_ROLES_IN = f"""
    do $$
    declare
        role_name text;
    begin
        foreach role_name in array string_to_array('{" ".join(_ROLES)}', ' ')
        loop
            if exists (select from pg_roles where rolname = role_name) then
                execute format('alter role %I login', role_name);
            else
                execute format('create role %I login', role_name);
            end if;
        end loop;
    end
    $$
"""

# What a build says of its window by `set local` is told to the workers.
_TELL_SETTINGS = """
    do $$
    begin
        execute format(
            'alter database %I set citus.propagate_set_commands to ''local''', current_database()
        );
    end
    $$
"""

# Citus refuses triggers on such a table. There it is append-only because nobody who connects has
# the right to change a row. Each unique key must hold the column that rows are spread by.
_DISTRIBUTE = """
    do $$
    declare
        part regclass;
        key text;
    begin
        for part in
            select relid from pg_partition_tree('{table}')
            where exists (select from pg_trigger where tgrelid = relid and tgname = 'append_only')
            -- The parent last: its partitions' triggers are their own.
            order by level desc
        loop
            execute format('drop trigger append_only on %s', part);
        end loop;
        select conname into key from pg_constraint
        where conrelid = '{table}'::regclass and contype = 'p';
        execute format('alter table {table} drop constraint %I', key);
        alter table {table}
        add primary key (bronze_id, received_at, product_id);
        perform create_distributed_table('{table}', 'product_id');
    end
    $$
"""


async def is_citus(connection: Connection) -> bool:
    """Tell whether the database is spread over several nodes."""
    found: bool = await connection.fetchval(
        "select exists (select from pg_extension where extname = 'citus')"
    )
    return found


async def let_roles_in(connection: Connection) -> None:
    """Make the roles ahead of the migrations, so that the coordinator can act as each of them."""
    await connection.execute(_LET_ROLES_IN)


async def distribute(connection: Connection) -> None:
    """Spread what is not spread yet.

    Raises:
        WarehouseError: a table holds rows already.

    """
    await connection.execute(_TELL_SETTINGS)
    for table in DISTRIBUTED:
        async with connection.transaction():
            await connection.execute("set local role medallion_owner")
            if await connection.fetchval(
                "select exists (select from pg_dist_partition where logicalrelid = $1::regclass)",
                table,
            ):
                continue
            if await connection.fetchval(f"select exists (select from {table})"):  # noqa: S608
                raise WarehouseError(
                    f"{table} was filled before the database had Citus. Make another database on "
                    "the coordinator and move the rows there: docs/scaling.md tells how."
                )
            await connection.execute(_DISTRIBUTE.format(table=table))
