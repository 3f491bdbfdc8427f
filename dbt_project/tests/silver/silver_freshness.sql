{{ config(severity='warn') }}

-- The last to arrive may be late ones: look at some more.
with newest as (
    select trade_time from {{ ref('coinbase_trades') }}
    order by bronze_id desc
    limit 1000
)

select max(trade_time) as newest
from newest
-- A clock that is ahead must not hide that nothing comes any more.
where trade_time <= now()
having coalesce(max(trade_time) < now() - interval '15 minutes', true)
