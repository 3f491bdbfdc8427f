{{ config(severity='warn') }}

with newest_answer as (
    select * from {{ source('coinbase', 'coinbase_products_raw') }}
    order by catalogue_id desc
    limit 1
),

listed as (
    select elements.product
    from newest_answer
    cross join lateral jsonb_array_elements(newest_answer.payload) as elements (product)
),

products as (
    select * from {{ ref('products') }}
    where is_current
)

select listed.product
from listed
left join products
    on listed.product ->> 'id' = products.product_id
where
    not coalesce(
        products.base_increment > 0
        and products.quote_increment > 0
        and products.base_currency <> ''
        and products.quote_currency <> '',
        false
    )
