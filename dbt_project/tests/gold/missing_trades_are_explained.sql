-- The ids of a day begin behind the last one of the day before.
with days as (
    select
        product_id,
        day,
        missing,
        first_trade_id,
        int8range(
            least(last_trade_id - trades - missing, last_trade_id), last_trade_id, '(]'
        ) as ids
    from {{ ref('trade_completeness') }}
    -- Trades with ids of a day before make up in the count for some that are missing of this day's.
    where missing > 0 or first_trade_id <= last_trade_id - trades - missing
),

-- Used twice, PostgreSQL would else write out the whole table at every run.
silver as not materialized (
    select * from {{ ref('coinbase_trades') }}
),

in_gaps as (
    select
        days.product_id,
        days.day,
        gaps.missing + gaps.absent as ids
    from days
    inner join {{ source('coinbase', 'trade_gaps') }} as gaps
        on
            days.product_id = gaps.product_id
            and lower(days.ids) <= gaps.last_id
            and upper(days.ids) > gaps.first_id
    where gaps.status <> 'repaired'
),

in_quarantine as (
    select
        days.product_id,
        days.day,
        {{ guarded_bigint('quarantine.trade_id') }} as trade_id
    from days
    inner join {{ ref('coinbase_trades_quarantine') }} as quarantine
        on
            days.product_id = quarantine.product_id
            and lower(days.ids) <= {{ guarded_bigint('quarantine.trade_id') }}
            and upper(days.ids) > {{ guarded_bigint('quarantine.trade_id') }}
),

-- A repair takes out of a gap what it brought to bronze, which silver may not have read yet.
not_yet_read as (
    select
        days.product_id,
        days.day,
        staged.trade_id
    from days
    inner join {{ ref('stg_coinbase__trades') }} as staged
        on
            days.product_id = staged.product_id
            and days.ids @> staged.trade_id
    where staged.bronze_id > {{ watermark(ref('coinbase_trades'), 'high') }}
),

explained as (
    select
        product_id,
        day,
        ids
    from in_gaps
    {% for trades in ['in_quarantine', 'not_yet_read'] -%}
        union all
        select
            product_id,
            day,
            int8multirange(int8range(trade_id, trade_id, '[]')) as ids
        from {{ trades }}
    {% endfor -%}
),

explained_days as (
    select
        days.product_id,
        days.day,
        range_agg(explained.ids) * int8multirange(days.ids) as ids
    from days
    inner join explained using (product_id, day)
    group by days.product_id, days.day, days.ids
),

explained_ranges as (
    select
        product_id,
        day,
        unnest(ids) as ids
    from explained_days
),

-- A trade that came all the same is not missing. Range by range, for the trades of one lie side by
-- side in the index; most hold none. No equality tempts the planner to read all of silver.
came_all_the_same as (
    select
        explained_ranges.product_id,
        explained_ranges.day,
        count(*) as trades
    from explained_ranges
    inner join silver
        on
            (explained_ranges.product_id, lower(explained_ranges.ids))
            <= (silver.product_id, silver.trade_id)
            and (explained_ranges.product_id, upper(explained_ranges.ids))
            > (silver.product_id, silver.trade_id)
    group by explained_ranges.product_id, explained_ranges.day
),

explained_counts as (
    select
        explained_ranges.product_id,
        explained_ranges.day,
        sum(upper(explained_ranges.ids) - lower(explained_ranges.ids))
        - coalesce(max(came_all_the_same.trades), 0) as missing
    from explained_ranges
    left join came_all_the_same using (product_id, day)
    group by explained_ranges.product_id, explained_ranges.day
),

-- Of a day whose count does not come out, each trade is looked at.
suspects as (
    select
        days.product_id,
        days.day,
        days.ids,
        coalesce(explained_days.ids, '{}') as explained_ids
    from days
    left join explained_days using (product_id, day)
    left join explained_counts using (product_id, day)
    where
        days.missing > coalesce(explained_counts.missing, 0)
        or days.first_trade_id < lower(days.ids)
),

steps as (
    select
        suspects.product_id,
        suspects.day,
        suspects.explained_ids,
        silver.bronze_id,
        int8range(
            lag(silver.trade_id, 1, lower(suspects.ids) - 1) over day_so_far, silver.trade_id, '()'
        ) as skipped_ids
    from suspects
    inner join silver
        on
            suspects.product_id = silver.product_id
            and lower(suspects.ids) <= silver.trade_id
            and upper(suspects.ids) > silver.trade_id
    window day_so_far as (
        partition by suspects.product_id, suspects.day order by silver.trade_id
    )
),

-- A trade may just be late: its absence counts when the one behind it has been here for a while. By
-- the clock of the database, for others may be off.
settled as (
    select bronze_high from ops.pipeline_runs
    where
        coalesce(end_ts, now()) <= now() - make_interval(secs => {{ var('gap_grace_seconds') }})
    order by start_ts desc
    limit 1
),

unexplained as (
    select
        steps.product_id,
        steps.day,
        range_agg(steps.skipped_ids) - steps.explained_ids as ids
    from steps
    inner join settled on steps.bronze_id <= settled.bronze_high
    where not isempty(steps.skipped_ids)
    group by steps.product_id, steps.day, steps.explained_ids
)

select
    unexplained.product_id,
    unexplained.day,
    lower(missing_range.ids) as first_missing_id,
    upper(missing_range.ids) - 1 as last_missing_id
from unexplained
cross join lateral unnest(unexplained.ids) as missing_range (ids)
