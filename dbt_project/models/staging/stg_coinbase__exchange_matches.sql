with frames as (
    select * from {{ source('coinbase', 'coinbase_trades_raw') }}
    where source = 'exchange_ws'
),

trades as (
    select
        frames.bronze_id,
        1 as trade_position,
        frames.received_at,
        frames.source,
        frames.product_id as frame_product_id,
        frames.payload,
        {{ trade_fields('frames.payload', "frames.payload ->> 'product_id'") }}
    from frames
)

select * from trades
