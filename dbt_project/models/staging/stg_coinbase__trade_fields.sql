with trades as (
    select * from {{ ref('stg_coinbase__exchange_matches') }}
    union all
    select * from {{ ref('stg_coinbase__advanced_market_trades') }}
    union all
    select * from {{ ref('stg_coinbase__rest_trades') }}
)

select * from trades
