select * from {{ ref('candle_reconciliation') }}
where {{ unchecked(ref('candle_reconciliation')) }} and is_whole and verdict <> 'agrees'
