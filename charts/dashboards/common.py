"""Variables, queries and panels of both dashboards. Grafana's own builders (grafana-foundation-sdk) write the JSON."""

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"
# What a decision looks like, everywhere.
DECISIONS = {"allowed": GREEN, "denied": RED, "would_deny": ORANGE}
# Of a tool call, which a policy may let a person decide.
CALL_DECISIONS = DECISIONS | {"would_ask": YELLOW}


# ---- queries


def counted(selector, by, per_second=False):
    """How much counters rose, by some labels: in the range of the dashboard, or each second.

    A counter that begins above 0 has no rise for `increase`, and the first thing that a new agent does is often what is denied. So
    of a process that started within the window, what a counter began with counts too.
    """
    window, seconds = ("$__rate_interval", "($__rate_interval_ms / 1000)") if per_second else ("$__range", "$__range_s")
    rise = f"rate({selector}[{window}])" if per_second else f"increase({selector}[{window}])"
    began = (
        f"(min_over_time({selector}[{window}]) unless {selector} offset {window})\n"
        f"      and on (job, instance) (time() - last_over_time(process_start_time_seconds{{job=~\"$job\"}}[{window}]) < {seconds})"
    )
    divided = f" / {seconds}" if per_second else ""
    grouped = f"sum by ({', '.join(by)})" if by else "sum"
    return f'{grouped} (\n  {rise}\n  or\n  label_replace(\n    {began},\n    "first", "true", "", ""\n  ){divided}\n)'


def quantile(q, histogram, matchers, by=()):
    return f"histogram_quantile({q}, sum by ({', '.join(('le', *by))}) (rate({histogram}_bucket{{{matchers}}}[$__rate_interval])))"


def query(expr, legend="", ref="A"):
    """Over time."""
    return prometheus.Dataquery().datasource(SOURCE).expr(expr).legend_format(legend or "__auto").range().ref_id(ref)


def now(expr, ref="A"):
    """At the end of the range, as rows of a table."""
    return prometheus.Dataquery().datasource(SOURCE).expr(expr).instant().format(PromQueryFormat.TABLE).ref_id(ref)


def one(expr, ref="A"):
    """At the end of the range, as one number."""
    return prometheus.Dataquery().datasource(SOURCE).expr(expr).instant().legend_format("__auto").ref_id(ref)


# ---- variables


def source():
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus").description("The Prometheus that scrapes Toolweir.")


def variable(name, label, description, expr, everything=".*"):
    """Values of a label. `.*` also matches series that do not have it, such as those of a sidecar that runs outside of Kubernetes."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query({"query": f"label_values({expr}, {name})", "refId": name, "qryType": 1})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


# ---- panels


def steps(*at):
    """Thresholds: the colour from the beginning, then pairs of a value and the colour from there on."""
    first, *rest = at
    found = [model.Threshold(value=None, color=first)] + [model.Threshold(value=value, color=color) for value, color in rest]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)


def prop(id_val, value):
    return model.DynamicConfigValue(id_val=id_val, value=value)


def panel(kind, title, description, unit, nothing, width, height, *targets):
    made = kind.Panel().title(title).description(description).datasource(SOURCE).unit(unit).no_value(nothing).span(width).height(height)
    for target in targets:
        made = made.with_target(target)
    return made


def number(title, description, unit, nothing, expr, thresholds, decimals=0, width=4):
    """One number, with the colour that its thresholds give it."""
    return (
        panel(stat, title, description, unit, nothing, width, 4, one(expr))
        .decimals(decimals)
        .thresholds(thresholds)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .color_mode(common_model.BigValueColorMode.VALUE)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    )


def lines(title, description, unit, nothing, *targets, width=12, height=8, floor=0.0):
    """Lines over time, with the last and the highest value of each in the legend."""
    return (
        panel(timeseries, title, description, unit, nothing, width, height, *targets)
        .min(floor)
        .line_width(1)
        .fill_opacity(10)
        .show_points(common_model.VisibilityMode.AUTO)
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.PALETTE_CLASSIC))
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.TABLE)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI).sort(common_model.SortOrder.DESCENDING))
    )


def stacked(*args, **more):
    """Shares of a whole over time."""
    return lines(*args, **more).fill_opacity(50).line_width(0).stacking(common.StackingConfig().group("A").mode(common_model.StackingMode.NORMAL))


def coloured(made, colours):
    """Series of these names have these colours."""
    for name, colour in colours.items():
        made = made.override_by_name(name, [prop("color", {"mode": "fixed", "fixedColor": colour})])
    return made


def rows(title, description, unit, nothing, columns, *targets, sort, width=12, height=9, joined=None, drop=(), descending=True):
    """A table. `columns`: what each field is called in the head, in this order; `drop`: fields that are not shown."""
    made = panel(table, title, description, unit, nothing, width, height, *targets)
    if joined:
        made = made.with_transformation(model.DataTransformerConfig(id_val="joinByField", options={"byField": joined, "mode": "outer"}))
    # Of two queries that give a field of the same name, a join keeps both, with numbers.
    hidden = {field: True for field in ("Time", "Time 1", "Time 2", "Time 3", "Time 4", *drop)}
    made = made.with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": hidden,
                "indexByName": {field: index for index, field in enumerate(columns)},
                "renameByName": columns,
            },
        )
    )
    return (
        made.cell_height(common_model.TableCellHeight.SM)
        .show_header(True)
        .sort_by([common.TableSortByFieldState().display_name(sort).desc(descending)])
    )


def board(uid, title, description, variables, other):
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["toolweir"])
        .readonly()
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink(other)
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags(["toolweir"])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for one_of_them in variables:
        made = made.with_variable(one_of_them)
    return made


def row(title):
    return dashboard.Row(title)
