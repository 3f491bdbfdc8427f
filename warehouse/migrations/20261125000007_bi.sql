-- migrate:up
set local role medallion_transform;

-- With a build every 5 s, a week of 60 checks is 7 million results: too many to count at each look.
create table ops.dq_check_hours (
    hour timestamptz not null,
    check_name text not null,
    runs bigint not null,
    passed bigint not null,
    last_failed_at timestamptz,
    primary key (hour, check_name)
);
create index on ops.dq_check_hours (check_name, hour) where last_failed_at is not null;
comment on table ops.dq_check_hours is
'One row per hour and data-quality check that was run in it: dq_check_results, counted.';
comment on column ops.dq_check_hours.hour is 'Start of the hour (UTC).';
comment on column ops.dq_check_hours.check_name is 'Name of the dbt test.';
comment on column ops.dq_check_hours.runs is 'How often it was run; skipped is not run.';
comment on column ops.dq_check_hours.passed is 'How often it passed.';
comment on column ops.dq_check_hours.last_failed_at is
'When it last did not pass in this hour; null where it always did.';

insert into ops.dq_check_hours (hour, check_name, runs, passed, last_failed_at)
select
    date_trunc('hour', check_ts, 'UTC'),
    check_name,
    count(*),
    count(*) filter (where passed),
    max(check_ts) filter (where not passed)
from ops.dq_check_results
where status <> 'skipped'
group by 1, 2;

-- Leads to the newest verdict of a check.
create index on ops.dq_check_results (check_name, check_ts) where status <> 'skipped';

create view gold.dq_summary as
with results as (
    select * from ops.dq_check_results
),

-- Used twice, PostgreSQL would else write out the whole table at every look.
hours as not materialized (
    select * from ops.dq_check_hours
),

counts as (
    select
        check_name,
        coalesce(sum(runs) filter (where hour > now() - interval '24 hours'), 0)::bigint
            as runs_24h,
        coalesce(sum(passed) filter (where hour > now() - interval '24 hours'), 0)::bigint
            as passed_24h,
        sum(runs)::bigint as runs_7d,
        sum(passed)::bigint as passed_7d
    from hours
    where hour > now() - interval '7 days'
    group by check_name
),

summary as (
    select
        counts.check_name,
        newest.table_name,
        newest.check_type,
        newest.details ->> 'description' as description,
        newest.severity,
        newest.status,
        newest.failures,
        newest.details ->> 'message' as message,
        newest.check_ts as checked_at,
        counts.runs_24h,
        counts.passed_24h,
        round(counts.passed_24h / nullif(counts.runs_24h, 0)::numeric, 6) as pass_rate_24h,
        counts.runs_7d,
        counts.passed_7d,
        round(counts.passed_7d / counts.runs_7d::numeric, 6) as pass_rate_7d,
        last_failure.last_failed_at
    from counts
    cross join lateral (
        select * from results
        where results.check_name = counts.check_name and results.status <> 'skipped'
        order by results.check_ts desc
        limit 1
    ) as newest
    left join lateral (
        select hours.last_failed_at from hours
        where hours.check_name = counts.check_name and hours.last_failed_at is not null
        order by hours.hour desc
        limit 1
    ) as last_failure on true
)

select * from summary;
comment on view gold.dq_summary is
'One row per data-quality check that was run within the last 7 days: its newest verdict, '
'and how often it passed. A warning is no pass. 24 hours and 7 days are counted by whole hours: the '
'current one, and those that began within the period.';
comment on column gold.dq_summary.check_name is 'Name of the dbt test.';
comment on column gold.dq_summary.table_name is 'Schema and name of the table that it looks at.';
comment on column gold.dq_summary.check_type is
'Kind of test, for example not_null; singular for one of its own SQL file.';
comment on column gold.dq_summary.description is 'What holds where it passes.';
comment on column gold.dq_summary.severity is 'What a failure is worth: warn or error.';
comment on column gold.dq_summary.status is
'The newest verdict: pass, warn, fail, or error (it could not run).';
comment on column gold.dq_summary.failures is
'Failing rows of the newest run; null where it could not run.';
comment on column gold.dq_summary.message is
'What dbt said of the newest run; null where it passed.';
comment on column gold.dq_summary.checked_at is 'When it was last run (UTC).';
comment on column gold.dq_summary.runs_24h is 'How often it was run in 24 hours.';
comment on column gold.dq_summary.passed_24h is 'How often it passed in 24 hours.';
comment on column gold.dq_summary.pass_rate_24h is
'Share of the runs of 24 hours that passed, from 0 to 1; null where there was none.';
comment on column gold.dq_summary.runs_7d is 'How often it was run in 7 days.';
comment on column gold.dq_summary.passed_7d is 'How often it passed in 7 days.';
comment on column gold.dq_summary.pass_rate_7d is
'Share of the runs of 7 days that passed, from 0 to 1.';
comment on column gold.dq_summary.last_failed_at is
'When it last did not pass (UTC); null where it always did.';

grant select on ops.dq_check_hours, gold.dq_summary to medallion_reader;

reset role;

-- migrate:down
drop view gold.dq_summary;
drop table ops.dq_check_hours;
drop index ops.dq_check_results_check_name_check_ts_idx;
