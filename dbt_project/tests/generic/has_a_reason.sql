{% test has_a_reason(model) %}
select * from {{ model }}
where cardinality(reject_reasons) = 0
{% endtest %}
