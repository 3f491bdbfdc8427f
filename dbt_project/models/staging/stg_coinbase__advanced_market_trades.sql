with frames as (
    select * from {{ source('coinbase', 'coinbase_trades_raw') }}
    where source = 'advanced_ws'
),

elements as (
    select
        frames.bronze_id,
        elements.position::integer as trade_position,
        frames.received_at,
        frames.source,
        frames.product_id as frame_product_id,
        -- Not the frame: repeated for each trade of a large one, it would fill the disk.
        elements.trade as payload
    from frames
    -- One array per frame, for the planner expects ten trades of it. Of a function that takes jsonb
    -- apart it expects a hundred rows, and reads all of silver to look so many up.
    cross join
        lateral unnest(bronze.trades_in_frame(frames.payload))
        with ordinality as elements (trade, position)
    -- On Citus a frame of several products lies under each: there a row tells of its own product.
    where
        coalesce(
            elements.trade ->> 'product_id' = nullif(frames.product_id, '')
            or jsonb_typeof(elements.trade -> 'product_id') <> 'string',
            true
        )
),

trades as (
    select
        *,
        {{ trade_fields('payload', "payload ->> 'product_id'") }}
    from elements
)

select * from trades
