with staged as (
    select * from {{ ref('stg_coinbase__trades') }}
    where {{ unchecked(ref('coinbase_trades_quarantine')) }}
),

silver as (
    select * from {{ ref('coinbase_trades') }}
),

quarantine as (
    select * from {{ ref('coinbase_trades_quarantine') }}
),

accounts as (
    select
        staged.bronze_id,
        staged.trade_position,
        silver.bronze_id is not null as in_silver,
        quarantine.bronze_id is not null as in_quarantine
    from staged
    left join silver
        on
            staged.product_id = silver.product_id
            and staged.trade_id = silver.trade_id
            and staged.price = silver.price
            and staged.size = silver.size
            and staged.side = silver.side
            and staged.trade_time = silver.trade_time
            and cardinality(staged.reject_reasons) = 0
    left join quarantine
        on
            staged.bronze_id = quarantine.bronze_id
            and staged.trade_position = quarantine.trade_position
)

-- Neither is a lost trade, both is one counted twice.
select * from accounts
where in_silver = in_quarantine
