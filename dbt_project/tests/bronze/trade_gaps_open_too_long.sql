{{ config(severity='warn') }}

select
    product_id,
    first_id,
    last_id,
    found_at
from {{ source('coinbase', 'trade_gaps') }}
where
    closed_at is null
    and found_at < now() - interval '{{ var("gap_open_max_minutes") }} minutes'
    -- One that waits for a backfill is open because nobody asked for it.
    and next_try_at < 'infinity'

-- Dagster knows a check by a model that it looks at: what is open here is missing there.
-- depends_on: {{ ref('trade_completeness') }}
