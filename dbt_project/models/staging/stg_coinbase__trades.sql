with trades as (
    select * from {{ ref('stg_coinbase__trade_fields') }}
),

{{ judged('trades') }}

select * from judged
