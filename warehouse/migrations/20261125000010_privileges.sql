-- migrate:up
-- bronze.checked_id() reads the watermarks for whoever archives, with the rights of its owner.
set local role medallion_transform;
revoke select on ops.model_watermarks from medallion_archive;
revoke usage on schema ops from medallion_archive;
revoke execute on function ops.begin_run from public;
reset role;

-- A large object belongs to no schema, so any role may fill the disk with them, the readers too. Where
-- the migrating user may not forbid it, PostgreSQL warns and goes on.
revoke execute on function lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) from public;

-- migrate:down
grant execute on function lo_creat(integer), lo_create(oid), lo_from_bytea(oid, bytea) to public;
grant execute on function ops.begin_run to public;
grant usage on schema ops to medallion_archive;
grant select on ops.model_watermarks to medallion_archive;
