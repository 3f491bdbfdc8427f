with frames as (
    select * from {{ source('coinbase', 'coinbase_trades_raw') }}
    where source = 'exchange_ws'
),

trades as (
    select
        frames.bronze_id,
        1::smallint as trade_position,
        frames.received_at,
        frames.source,
        frames.payload,
        fields.*
    from frames
    cross join lateral (  -- noqa: ST05
        select
            payload ->> 'product_id' as product_id_text,
            payload ->> 'trade_id' as trade_id_text,
            payload ->> 'price' as price_text,
            payload ->> 'size' as size_text,
            payload ->> 'side' as side_text,
            payload ->> 'time' as time_text,
            payload ->> 'maker_order_id' as maker_order_id,
            payload ->> 'taker_order_id' as taker_order_id
        -- A fence: else the planner reads the frame anew for each use of a column.
        offset 0  -- noqa: PRS
    ) as fields
)

select * from trades
