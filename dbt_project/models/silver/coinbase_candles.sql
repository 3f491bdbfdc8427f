{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['product_id', 'bucket', 'granularity'],
    indexes=[{'columns': ['bronze_id']}],
) }}

with candles as (
    select * from {{ ref('stg_coinbase__exchange_candles') }}
),

-- Asked again, the exchange may have settled what it said before.
last_answers as (
    select distinct on (product_id, granularity, bucket)
        product_id,
        granularity,
        bucket,
        {% for column in ['open', 'high', 'low', 'close', 'volume'] -%}
            case when not is_unreadable then {{ column }} end as {{ column }},
        {% endfor -%}
        received_at,
        bronze_id
    from candles
    where {{ in_window('bronze_id') }} and bucket is not null
    order by product_id asc, granularity asc, bucket asc, bronze_id desc, place asc
)

select * from last_answers
