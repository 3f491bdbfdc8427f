-- migrate:up
set local role medallion_transform;

create table ops.model_watermarks (
    model text primary key,
    low bigint not null,
    high bigint not null,
    checked bigint not null,
    rebuilt_at timestamptz not null default clock_timestamp(),
    updated_at timestamptz not null default clock_timestamp()
);
comment on table ops.model_watermarks is
'One row per incremental model: the window of bronze_ids that its last run read.';
comment on column ops.model_watermarks.model is 'Schema and name of the table.';
comment on column ops.model_watermarks.low is 'The window began after this bronze_id.';
comment on column ops.model_watermarks.high is
'The window ended with this bronze_id; nothing up to it is left to read.';
comment on column ops.model_watermarks.checked is
'Every check of the model has passed up to this bronze_id; the next checks read on from here.';
comment on column ops.model_watermarks.rebuilt_at is
'When a run last made the whole table; models that read it then begin anew, too.';
comment on column ops.model_watermarks.updated_at is 'When the run wrote it.';

create table ops.pipeline_runs (
    run_id text primary key,
    pipeline_name text not null,
    start_ts timestamptz not null,
    end_ts timestamptz,
    status text not null check (status in ('running', 'success', 'failed')),
    full_refresh boolean not null,
    bronze_low bigint not null,
    bronze_high bigint not null,
    records_processed bigint not null,
    models integer,
    checks integer,
    error_message text
);
create index on ops.pipeline_runs (start_ts);
-- One run at a time: dbt looks once which tables there are, and rebuilds them by renaming.
create unique index pipeline_runs_one_at_a_time on ops.pipeline_runs ((true))
where status = 'running';
comment on table ops.pipeline_runs is 'One row per invocation of dbt that builds or tests.';
comment on column ops.pipeline_runs.run_id is 'The invocation_id of dbt.';
comment on column ops.pipeline_runs.pipeline_name is 'The dbt command, for example build.';
comment on column ops.pipeline_runs.start_ts is 'When it began.';
comment on column ops.pipeline_runs.end_ts is 'When it ended; null while it runs.';
comment on column ops.pipeline_runs.status is
'running, success, or failed (a run that was killed is set to failed by the next one).';
comment on column ops.pipeline_runs.full_refresh is 'Whether --full-refresh was given.';
comment on column ops.pipeline_runs.bronze_low is 'Watermark of bronze before this run.';
comment on column ops.pipeline_runs.bronze_high is 'Watermark of bronze that this run fixed.';
comment on column ops.pipeline_runs.records_processed is
'Frames between the two: those that were new to this run.';
comment on column ops.pipeline_runs.models is 'Models that were built.';
comment on column ops.pipeline_runs.checks is 'Checks that were run.';
comment on column ops.pipeline_runs.error_message is 'The first errors, where there were any.';

-- Waits until no other run is at work, and opens the row of this one.
-- dbt holds no connection from its first to its last statement that could hold a lock. So a run counts
-- as killed when no connection of dbt has been seen for the time of `patience`.
create function ops.begin_run(
    run_id text, pipeline_name text, start_ts timestamptz, full_refresh boolean
) returns void
language plpgsql
set search_path = pg_catalog, pg_temp as $$
declare
    patience constant interval := '10 seconds';
    awaited text;
    at_work text;
    seen_at timestamptz;
begin
    -- Another that waits must not take this one for a run at work.
    perform set_config('application_name', 'medallion_dbt_waiting', true);
    loop
        select run.run_id into at_work from ops.pipeline_runs as run where run.status = 'running';
        if not found then
            begin
                insert into ops.pipeline_runs values (
                    run_id, pipeline_name, start_ts, null, 'running', full_refresh, 0, 0, 0
                );
                perform set_config('application_name', 'medallion_dbt', true);
                return;
            exception
                when unique_violation then continue;
            end;
        end if;
        perform pg_stat_clear_snapshot();
        if
            at_work is distinct from awaited
            or exists (
                select from pg_stat_activity
                where
                    datname = current_database()
                    and application_name = 'medallion_dbt'
                    and pid <> pg_backend_pid()
            )
        then
            awaited := at_work;
            seen_at := clock_timestamp();
        elsif clock_timestamp() > seen_at + patience then
            update ops.pipeline_runs as run
            set
                status = 'failed',
                end_ts = clock_timestamp(),
                error_message = 'Did not end; was it killed?'
            where run.run_id = at_work and run.status = 'running';
        end if;
        perform pg_sleep(0.1);
    end loop;
end
$$;
comment on function ops.begin_run is
'Waits until no other run is at work, and opens the row of this one in pipeline_runs.';

create table ops.dq_check_results (
    id bigint generated always as identity primary key,
    check_ts timestamptz not null,
    run_id text not null,
    check_name text not null,
    check_type text not null,
    table_name text not null,
    severity text not null check (severity in ('warn', 'error')),
    status text not null check (status in ('pass', 'warn', 'fail', 'error', 'skipped')),
    passed boolean not null,
    failures bigint,
    seconds numeric not null,
    details jsonb not null
);
create index on ops.dq_check_results (check_ts);
create index on ops.dq_check_results (run_id);
comment on table ops.dq_check_results is 'One row per data-quality check and run.';
comment on column ops.dq_check_results.id is 'Order of writing.';
comment on column ops.dq_check_results.check_ts is 'When the run that held it ended.';
comment on column ops.dq_check_results.run_id is 'ops.pipeline_runs.run_id.';
comment on column ops.dq_check_results.check_name is 'Name of the dbt test.';
comment on column ops.dq_check_results.check_type is
'Kind of test, for example not_null; singular for one of its own SQL file.';
comment on column ops.dq_check_results.table_name is 'Schema and name of the table it looks at.';
comment on column ops.dq_check_results.severity is 'What a failure is worth: warn or error.';
comment on column ops.dq_check_results.status is
'pass, warn, fail, error (it could not run), or skipped.';
comment on column ops.dq_check_results.passed is 'Whether status is pass.';
comment on column ops.dq_check_results.failures is 'Failing rows; null where it did not run.';
comment on column ops.dq_check_results.seconds is 'How long it took, in seconds.';
comment on column ops.dq_check_results.details is 'Message and description of the check.';

grant select on ops.pipeline_runs, ops.dq_check_results to medallion_reader;

reset role;

-- migrate:down
drop table ops.dq_check_results;
drop function ops.begin_run;
drop table ops.pipeline_runs;
drop table ops.model_watermarks;
