-- migrate:up
-- An ingester looks, before it writes, whether the database is of its own version.
grant usage on schema public to medallion_ingest;
grant select on public.schema_migrations to medallion_ingest;

-- migrate:down
revoke select on public.schema_migrations from medallion_ingest;
revoke usage on schema public from medallion_ingest;
