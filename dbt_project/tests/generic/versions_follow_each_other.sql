{% test versions_follow_each_other(model) %}
with versions as (
    select
        *,
        lead(valid_from) over history as next_from
    from {{ model }}
    window history as (partition by product_id order by valid_from)
)

select * from versions
where
    valid_until <= valid_from
    or next_from < valid_until
    or (valid_until is null and next_from is not null)
    or is_current <> (valid_until is null)
{% endtest %}
