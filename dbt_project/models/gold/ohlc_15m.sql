{{ config(
    unique_key=['product_id', 'bucket_15m'],
    indexes=[{'columns': ['bucket_15m']}, {'columns': ['bronze_id']}],
) }}

{{ roll_up_candles(
    parts=ref('ohlc_5m'),
    part_bucket='bucket_5m',
    part_interval='5 minutes',
    bucket='bucket_15m',
    interval='15 minutes',
) }}
