{{ config(
    materialized='incremental',
    incremental_strategy='insert_new',
    unique_key=['bronze_id', 'trade_position'],
    distributed_by=none,
    indexes=[{'columns': ['product_id', '(' ~ guarded_bigint('trade_id') ~ ')']}],
) }}

with trades as (
    select * from {{ ref('stg_coinbase__trades') }}
),

accepted as (
    select * from {{ ref('coinbase_trades') }}
),

-- A null trade id matches nothing, so a rejected trade is never compared with an accepted one.
judged as (
    select
        trades.bronze_id,
        trades.trade_position,
        trades.received_at,
        trades.source,
        trades.product_id_text as product_id,
        trades.trade_id_text as trade_id,
        trades.payload,
        case
            when
                cardinality(trades.reject_reasons) = 0
                and (
                    (trades.price, trades.size, trades.side, trades.trade_time)
                    is distinct from
                    (accepted.price, accepted.size, accepted.side, accepted.trade_time)
                )
                then array['conflicting_duplicate']
            else trades.reject_reasons
        end as reject_reasons
    from trades
    left join accepted
        on
            trades.product_id = accepted.product_id
            and trades.trade_id = accepted.trade_id
    where {{ in_window('trades.bronze_id') }}
),

quarantined as (
    select
        bronze_id,
        trade_position,
        received_at,
        source,
        product_id,
        trade_id,
        reject_reasons,
        payload
    from judged
    where cardinality(reject_reasons) > 0
)

select * from quarantined
