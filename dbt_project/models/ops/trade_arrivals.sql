with trades as (
    select * from {{ ref('stg_coinbase__trade_fields') }}
),

rejected as (
    select * from {{ ref('coinbase_trades_quarantine') }}
),

-- Used twice, PostgreSQL would else write out the whole table.
accepted as not materialized (
    select * from {{ ref('coinbase_trades') }}
),

-- The planner takes the index for a range with two ends: one with one it takes for a third of all.
bounds as (
    select
        max(bronze_id) - 20000 as low,
        max(bronze_id) as high
    from accepted
),

received as (
    select
        product_id_text as product_id,
        count(*) as received
    from trades
    where bronze_id > (select low from bounds) and bronze_id <= (select high from bounds)
    group by product_id_text
),

-- By id, not by clock: what is fetched or replayed later than it happened is in order still.
ordered as (
    select
        product_id,
        source,
        trade_id < max(trade_id) over (
            partition by product_id
            order by bronze_id, trade_id
            rows between unbounded preceding and 1 preceding
        ) as is_late
    from accepted
    where bronze_id > (select low from bounds) and bronze_id <= (select high from bounds)
),

kept as (
    select
        product_id,
        count(*) as accepted,
        count(*) filter (where is_late and source <> 'rest') as late,
        count(*) filter (where source = 'rest') as repaired
    from ordered
    group by product_id
),

quarantined as (
    select
        product_id,
        count(*) as quarantined
    from rejected
    where bronze_id > (select low from bounds) and bronze_id <= (select high from bounds)
    group by product_id
),

arrivals as (
    select
        received.product_id,
        received.received,
        coalesce(kept.accepted, 0) as accepted,
        received - coalesce(accepted, 0) - coalesce(quarantined, 0) as duplicates,
        coalesce(quarantined.quarantined, 0) as quarantined,
        coalesce(kept.late, 0) as late,
        coalesce(kept.repaired, 0) as repaired
    from received
    left join kept on received.product_id = kept.product_id
    left join quarantined on received.product_id is not distinct from quarantined.product_id
)

select * from arrivals
