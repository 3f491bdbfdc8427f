{{ config(
    unique_key=['product_id', 'bucket_6h'],
    indexes=[{'columns': ['bucket_6h']}, {'columns': ['bronze_id']}],
) }}

{{ roll_up_candles(
    parts=ref('ohlc_1h'),
    part_bucket='bucket_1h',
    part_interval='1 hour',
    bucket='bucket_6h',
    interval='6 hours',
) }}
