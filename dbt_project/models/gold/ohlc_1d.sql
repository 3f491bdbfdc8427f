{{ config(
    unique_key=['product_id', 'bucket_1d'],
    indexes=[{'columns': ['bucket_1d']}, {'columns': ['bronze_id']}],
) }}

{{ roll_up_candles(
    parts=ref('ohlc_6h'),
    part_bucket='bucket_6h',
    part_interval='6 hours',
    bucket='bucket_1d',
    interval='1 day',
) }}
