{{ config(
    unique_key=['product_id', 'bucket_5m'],
    indexes=[{'columns': ['bucket_5m']}, {'columns': ['bronze_id']}],
) }}

{{ roll_up_candles(
    parts=ref('ohlc_1m'),
    part_bucket='bucket_1m',
    part_interval='1 minute',
    bucket='bucket_5m',
    interval='5 minutes',
) }}
