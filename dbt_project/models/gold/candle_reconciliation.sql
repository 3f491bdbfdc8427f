{{ config(
    unique_key=['product_id', 'bucket', 'granularity'],
    indexes=[{'columns': ['bucket']}, {'columns': ['bronze_id']}, {'columns': ['verdict']}],
) }}

-- Used several times, PostgreSQL would else write out the whole table at every run.
with theirs as not materialized (
    select * from {{ ref('coinbase_candles') }}
),

ours as not materialized (
    {% for granularity in ['1m', '1h'] -%}
        select
            *,
            '{{ granularity }}' as granularity,
            bucket_{{ granularity }} as bucket
        from {{ ref('ohlc_' ~ granularity) }}
        {{ 'union all' if not loop.last }}
    {% endfor -%}
),

touched as (
    select * from theirs
    where {{ is_touched('bronze_id', 'bucket') }}
    {%- if is_incremental() %}
        -- A new candle of ours tells whether those from the one before to the one behind are whole.
        union
        select between_neighbours.*
        from ours as new_candle
        {{ neighbours('new_candle', 'ours') }}
        {{ between_neighbours('new_candle', 'theirs') }}
        where {{ in_window('new_candle.bronze_id') }}
    {%- endif %}
),

compared as (
    select
        touched.product_id,
        touched.bucket,
        touched.granularity,
        {% for column in ['open', 'high', 'low', 'close', 'volume'] -%}
            ours.{{ column }},
            touched.{{ column }} as exchange_{{ column }},
            ours.{{ column }} - touched.{{ column }} as {{ column }}_difference,
        {% endfor -%}
        ours.trade_count,
        -- No id is missing from the trade before the bucket to the one behind it. Ids count from 1.
        behind.first_trade_id is not null
        and greatest(behind.first_trade_id, ours.last_trade_id + 1)
        - least(coalesce(before.last_trade_id, 0), ours.first_trade_id - 1)
        - 1 = coalesce(ours.trade_count, 0) as is_whole,
        touched.received_at as asked_at,
        greatest(touched.bronze_id, ours.bronze_id, before.bronze_id, behind.bronze_id) as bronze_id
    from touched
    left join ours using (product_id, granularity, bucket)
    {{ neighbours('touched', 'ours') }}
),

judged as (
    select
        *,
        case
            when trade_count is null and exchange_volume is null then 'agrees'
            when trade_count is null then 'only_theirs'
            when exchange_volume is null then 'only_ours'
            when {{ is_but_rounded() }} then 'agrees'
            else 'differs'
        end as verdict
    from compared
)

select * from judged
