select
    bronze_id,
    trade_position,
    received_at,
    source,
    product_id,
    trade_id,
    reject_reasons,
    payload
from {{ ref('coinbase_trades_quarantine') }}
