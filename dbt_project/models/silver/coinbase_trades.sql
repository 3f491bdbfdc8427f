{{ config(
    materialized='incremental',
    incremental_strategy='insert_new',
    unique_key=['product_id', 'trade_id'],
    indexes=[
        {'columns': ['product_id', 'trade_minute']},
        {'columns': ['bronze_id']},
    ],
) }}

with trades as (
    select * from {{ ref('stg_coinbase__trades') }}
),

valid as (
    select
        *,
        {{ bucket_start('trade_time', '1 minute') }} as trade_minute,
        case when side = 'buy' then 'sell' else 'buy' end as taker_side
    from trades
    where {{ in_window('bronze_id') }} and cardinality(reject_reasons) = 0
),

-- The row that arrived first stays, whichever batch a later one comes in.
first_arrivals as (
    select distinct on (product_id, trade_id)
        product_id,
        trade_id,
        trade_time,
        trade_minute,
        price,
        size,
        side,
        taker_side,
        maker_order_id,
        taker_order_id,
        source,
        received_at,
        bronze_id
    from valid
    order by product_id, trade_id, bronze_id, trade_position
)

select * from first_arrivals
