{{ config(
    unique_key=['product_id', 'bucket_1h'],
    indexes=[{'columns': ['bucket_1h']}, {'columns': ['bronze_id']}],
) }}

{{ roll_up_candles(
    parts=ref('ohlc_15m'),
    part_bucket='bucket_15m',
    part_interval='15 minutes',
    bucket='bucket_1h',
    interval='1 hour',
) }}
