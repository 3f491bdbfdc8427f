with frames as (
    select * from {{ source('coinbase', 'coinbase_trades_raw') }}
    where source = 'advanced_ws'
),

-- One array per frame, for the planner expects ten trades of it. Of each function that takes jsonb
-- apart it expects a hundred rows, and reads all of silver to look so many up.
-- Joined to the left: an event without trades stands in their place, in brackets, where no field of
-- a trade is found. So it ends in quarantine instead of nowhere.
unpacked as (
    select
        *,
        array(
            select coalesce(trades.trade, jsonb_build_array(events.event))
            from
                jsonb_array_elements(
                    case jsonb_typeof(frames.payload -> 'events')
                        when 'array' then frames.payload -> 'events'
                    end
                ) with ordinality as events (event, position)
            left join lateral jsonb_array_elements(
                case jsonb_typeof(events.event -> 'trades')
                    when 'array' then events.event -> 'trades'
                end
            ) with ordinality as trades (trade, position) on true
            order by events.position, trades.position  -- noqa: RF01, RF03
        ) as trades
    from frames
),

elements as (
    select
        unpacked.bronze_id,
        elements.position::integer as trade_position,
        unpacked.received_at,
        unpacked.source,
        -- Not the frame: repeated for each trade of a large one, it would fill the disk.
        elements.trade as payload
    from unpacked
    cross join lateral unnest(
        coalesce(nullif(unpacked.trades, '{}'), array[jsonb_build_array(unpacked.payload)])
    ) with ordinality as elements (trade, position)
),

trades as (
    select
        elements.*,
        fields.*
    from elements
    {{ trade_fields('elements.payload', "elements.payload ->> 'product_id'") }}
)

select * from trades
