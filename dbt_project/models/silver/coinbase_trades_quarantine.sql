{{ config(
    materialized='incremental',
    incremental_strategy='insert_new',
    unique_key=['bronze_id', 'trade_position'],
    distributed_by=none,
    indexes=[{'columns': ['product_id', '(' ~ guarded_bigint('trade_id') ~ ')']}],
) }}

with trades as (
    select * from {{ ref('stg_coinbase__trade_fields') }}
),

-- Used twice, PostgreSQL would else write out the whole table at every run.
accepted as not materialized (
    select * from {{ ref('coinbase_trades') }}
),

-- To judge what silver took would take longest, and that is nearly all. A frame of the Advanced
-- feed has several trades; and on Citus the join would gather all trades from their nodes.
suspects as (
    select trades.* from trades
    {% if not is_citus() -%}
        left join accepted
            on
                trades.bronze_id = accepted.bronze_id
                and trades.source <> 'advanced_ws'
                and {{ in_window('accepted.bronze_id') }}
    {%- endif %}
    where
        {{ in_window('trades.bronze_id') }}
        {% if not is_citus() -%}
            and accepted.bronze_id is null
        {%- endif %}
),

{{ judged('suspects') }},

-- A null trade id matches nothing, so a rejected trade is never compared with an accepted one.
compared as (
    select
        judged.bronze_id,
        judged.trade_position,
        judged.received_at,
        judged.source,
        judged.product_id_text as product_id,
        judged.trade_id_text as trade_id,
        judged.payload,
        case
            when
                cardinality(judged.reject_reasons) = 0
                and (
                    (judged.price, judged.size, judged.side, judged.trade_time)
                    is distinct from
                    (accepted.price, accepted.size, accepted.side, accepted.trade_time)
                )
                then array['conflicting_duplicate']
            else judged.reject_reasons
        end as reject_reasons
    from judged
    left join accepted
        on
            judged.product_id = accepted.product_id
            and judged.trade_id = accepted.trade_id
)

select * from compared
where cardinality(reject_reasons) > 0
