-- migrate:up
set local role medallion_owner;

-- A function, for PostgreSQL reads with one process alone where a query looks into each row by a
-- subquery of its own.
create function bronze.trades_in_frame(frame jsonb) returns jsonb[]
language sql immutable strict parallel safe
return coalesce(
    nullif(
        array(
            select coalesce(trades.trade, jsonb_build_array(events.event))
            from
                jsonb_array_elements(
                    case jsonb_typeof(frame -> 'events') when 'array' then frame -> 'events' end
                ) with ordinality as events (event, position)
            left join lateral jsonb_array_elements(
                case jsonb_typeof(events.event -> 'trades')
                    when 'array' then events.event -> 'trades'
                end
            ) with ordinality as trades (trade, position) on true
            order by events.position, trades.position
        ),
        '{}'
    ),
    array[jsonb_build_array(frame)]
);
comment on function bronze.trades_in_frame is
'The trades of an Advanced frame. An event without trades stands in their place, in brackets, where '
'no field of a trade is found.';

revoke execute on function bronze.trades_in_frame from public;
grant execute on function bronze.trades_in_frame to medallion_transform, medallion_reader;

-- No query uses it: what the exchange was asked for is read whole.
drop index bronze.coinbase_candles_raw_product_id_granularity_idx;

reset role;

-- migrate:down
create index on bronze.coinbase_candles_raw (product_id, granularity);
drop function bronze.trades_in_frame;
