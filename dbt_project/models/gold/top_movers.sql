{{ config(
    unique_key=['as_of', 'period', 'product_id'],
    full_refresh=false,
    indexes=[{'columns': ['as_of', 'period', 'product_id'], 'unique': true}],
    post_hook="delete from {{ this }} where snapshot_ts
        < now() - make_interval(days => {{ var('top_movers_history_days') }})",
) }}

{# The longer the period, the coarser the candles that it is measured on. #}
{% set periods = [
    {'name': '1h', 'interval': '1 hour', 'candles': ref('ohlc_1m'), 'bucket': 'bucket_1m'},
    {'name': '24h', 'interval': '1 day', 'candles': ref('ohlc_15m'), 'bucket': 'bucket_15m'},
    {'name': '7d', 'interval': '7 days', 'candles': ref('ohlc_1h'), 'bucket': 'bucket_1h'},
] %}

-- Used twice, PostgreSQL would else write out the whole table at every run.
with minutes as not materialized (
    select * from {{ ref('ohlc_1m') }}
),

market_clock as (
    select max(bucket_1m) + interval '1 minute' as as_of
    from minutes
    -- A run without new trades adds no snapshot.
    where
        exists (
            select 1 from minutes as new_minutes
            where {{ in_window('new_minutes.bronze_id') }}
        )
        -- One trade from the future must not empty the periods before it.
        and bucket_1m <= timestamptz '{{ run_started_at }}'
),

moves as (
    {% for period in periods -%}
        select
            '{{ period.name }}' as period,
            product_id,
            {{ first_by('open', period.bucket) }} as open,
            {{ last_by('close', period.bucket) }} as close,
            sum(volume) as volume,
            sum(quote_volume) as quote_volume,
            sum(trade_count)::bigint as trade_count
        from {{ period.candles }}
        where
            {{ period.bucket }}
            >= (select as_of from market_clock) - interval '{{ period.interval }}'
            and {{ period.bucket }} < (select as_of from market_clock)
        group by product_id
        {{ 'union all' if not loop.last }}
    {% endfor -%}
),

changes as (
    select
        *,
        round(100 * (close - open) / open, 4) as price_change_pct
    from moves
),

ranked as (
    select
        timestamptz '{{ run_started_at }}' as snapshot_ts,
        period,
        product_id,
        (rank() over (
            partition by period order by abs(price_change_pct) desc, quote_volume desc
        ))::integer as rank,
        price_change_pct,
        open,
        close,
        volume,
        quote_volume,
        trade_count,
        (select as_of from market_clock) as as_of
    from changes
)

select * from ranked
