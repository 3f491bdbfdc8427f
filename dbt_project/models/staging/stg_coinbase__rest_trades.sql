with answers as (
    select * from {{ source('coinbase', 'coinbase_trades_raw') }}
    where source = 'rest'
),

-- A trade from REST does not name its product: the ingester wrote down what it had asked for.
trades as (
    select
        answers.bronze_id,
        1 as trade_position,
        answers.received_at,
        answers.source,
        answers.product_id as frame_product_id,
        answers.payload,
        {{ trade_fields('answers.payload', 'answers.product_id') }}
    from answers
)

select * from trades
