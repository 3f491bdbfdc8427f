{# Each is null where the text can't be cast: no input can make a build fail. The guard stands
   inside a CASE, for SQL promises no order between conditions. #}

{% macro guarded_numeric(column) -%}
    case
        when
            -- Two numbers of this length have a quotient that fits a double, as daily_kpis needs.
            length({{ column }}) <= 40
            and {{ column }} ~ '^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9][0-9]?)?$'
            then trim_scale({{ column }}::numeric)
    end
{%- endmacro %}


{% macro guarded_bigint(column) -%}
    case
        when length({{ column }}) <= 18 and {{ column }} ~ '^[0-9]+$' then {{ column }}::bigint
    end
{%- endmacro %}


{% macro guarded_boolean(column) -%}
    case when {{ column }} in ('true', 'false') then {{ column }}::boolean end
{%- endmacro %}


{% macro guarded_timestamp(column) -%}
    case
        when
            length({{ column }}) <= 40
            -- With its zone.
            and (
                {{ column }} like '%____-__-__T__:%Z'
                or {{ column }} like '%____-__-__T__:%+%'
                or {{ column }} like '%____-__-__T__:%-%'
            )
            then case when bronze.is_timestamp({{ column }}) then {{ column }}::timestamptz end
    end
{%- endmacro %}
