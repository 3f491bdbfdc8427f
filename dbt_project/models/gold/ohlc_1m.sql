{{ config(
    unique_key=['product_id', 'bucket_1m'],
    indexes=[{'columns': ['bucket_1m']}, {'columns': ['bronze_id']}],
) }}

-- Used twice, PostgreSQL would else write out the whole table at every run.
with trades as not materialized (
    select * from {{ ref('coinbase_trades') }}
),

{% if is_incremental() -%}
    touched_minutes as (
        select distinct
            product_id,
            trade_minute
        from trades
        where {{ is_touched('bronze_id', 'trade_minute') }}
    ),
{%- endif %}

candles as (
    select
        product_id,
        trade_minute as bucket_1m,
        {{ first_by('price', 'trade_time', 'trade_id') }} as open,
        max(price) as high,
        min(price) as low,
        {{ last_by('price', 'trade_time', 'trade_id') }} as close,
        sum(size) as volume,
        sum(price * size) as quote_volume,
        sum(price * size) / sum(size) as vwap,
        count(*) as trade_count,
        coalesce(sum(size) filter (where taker_side = 'buy'), 0) as taker_buy_volume,
        min(trade_id) as first_trade_id,
        max(trade_id) as last_trade_id,
        count(*) filter (where source = 'rest') as repaired_count,
        max(bronze_id) as bronze_id
    from trades
    {% if is_incremental() -%}
        inner join touched_minutes using (product_id, trade_minute)
    {%- else -%}
        where {{ in_window('bronze_id') }}
    {%- endif %}
    group by product_id, trade_minute
)

select * from candles
