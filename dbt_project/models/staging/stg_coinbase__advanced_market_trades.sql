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
        -- Here and not where it is unnested: Citus wants functions in a join immutable.
        coalesce(
            nullif(
                array(
                    select coalesce(trades.trade, jsonb_build_array(events.event))
                    from
                        jsonb_array_elements(
                            case
                                when jsonb_typeof(frames.payload -> 'events') = 'array'
                                    then frames.payload -> 'events'
                            end
                        ) with ordinality as events (event, position)
                    left join lateral jsonb_array_elements(
                        case
                            when jsonb_typeof(events.event -> 'trades') = 'array'
                                then events.event -> 'trades'
                        end
                    ) with ordinality as trades (trade, position) on true
                    order by events.position, trades.position  -- noqa: RF01, RF03
                ),
                '{}'
            ),
            array[jsonb_build_array(frames.payload)]
        ) as trades
    from frames
),

elements as (
    select
        unpacked.bronze_id,
        elements.position::integer as trade_position,
        unpacked.received_at,
        unpacked.source,
        unpacked.product_id as frame_product_id,
        -- Not the frame: repeated for each trade of a large one, it would fill the disk.
        elements.trade as payload
    from unpacked
    cross join lateral unnest(unpacked.trades) with ordinality as elements (trade, position)
    -- On Citus a frame of several products lies under each: there a row tells of its own product.
    where
        coalesce(
            elements.trade ->> 'product_id' = nullif(unpacked.product_id, '')
            or jsonb_typeof(elements.trade -> 'product_id') <> 'string',
            true
        )
),

trades as (
    select
        elements.*,
        fields.*
    from elements
    {{ trade_fields('elements.payload', "elements.payload ->> 'product_id'") }}
)

select * from trades
