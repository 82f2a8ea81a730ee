// Draws one Grafana dashboard with the panels of Perses: same queries, same grid, units and thresholds as far as both know them.
// It shows that queries and layout hold, not every pixel of Grafana.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { ChartsProvider, generateChartsTheme, getTheme, SnackbarProvider } from '@perses-dev/components';
import { DataQueriesProvider, dynamicImportPluginLoader, PluginRegistry, TimeRangeProvider } from '@perses-dev/plugin-system';
import { ThemeProvider } from '@mui/material';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { DatasourceStoreProvider, Panel, VariableProvider } from '@perses-dev/dashboards';
import * as prometheus from '@perses-dev/prometheus-plugin';
import * as timeseries from '@perses-dev/timeseries-chart-plugin';
import * as stat from '@perses-dev/stat-chart-plugin';
import * as table from '@perses-dev/table-plugin';

// A panel of 8 rows is high enough for Perses to give a legend more than one line.
const COLUMN = 60, ROW = 48, GAP = 8;
const COLOURS = { green: '#2f9e44', yellow: '#e0a100', orange: '#e8740c', red: '#d92d20', blue: '#1f6feb', text: '#444444' };
// Where a table is narrow, what is longest gets its place.
const WIDTHS = { pod: 260, policy: 130, tool: 130, namespace: 90, workload: 110 };
const UNITS = { percentunit: 'percent-decimal', s: 'seconds', d: 'days', reqps: 'requests/sec', ops: 'ops/sec', short: 'decimal' };

const source = {
  kind: 'GlobalDatasource',
  metadata: { name: 'prometheus' },
  spec: { default: true, plugin: { kind: 'PrometheusDatasource', spec: { directUrl: `${location.origin}/prometheus` } } },
};
const api = {
  getDatasource: async () => undefined,
  getGlobalDatasource: async () => source,
  listDatasources: async () => [],
  listGlobalDatasources: async () => [source],
  buildProxyUrl: () => '/prometheus',
};
const loader = dynamicImportPluginLoader(
  [prometheus, timeseries, stat, table].map((module) => ({ resource: module.getPluginModule(), importPlugin: () => Promise.resolve(module) }))
);
const theme = getTheme('light');
const charts = generateChartsTheme(theme, { echartsTheme: { grid: { top: 14 } } });
const client = new QueryClient({ defaultOptions: { queries: { refetchOnWindowFocus: false, retry: 0 } } });

function format({ unit, decimals }) {
  const known = UNITS[unit];
  if (!known) throw new Error(`no unit ${unit}`);
  return { unit: known, ...(decimals === undefined ? {} : { decimalPlaces: decimals }), ...(unit === 'short' ? { shortValues: true } : {}) };
}

function thresholds({ steps }) {
  const [first, ...rest] = steps;
  return { mode: 'absolute', defaultColor: COLOURS[first.color], steps: rest.map(({ value, color }) => ({ value, color: COLOURS[color] })) };
}

// Perses writes `requests/sec` behind every number of an axis; once beside it is enough.
function axis(defaults) {
  const rate = { reqps: 'requests / s', ops: 'operations / s' }[defaults.unit];
  return rate ? { label: rate, format: { unit: 'decimal', shortValues: true } } : { format: format(defaults) };
}

function fixedColours(targets, overrides) {
  const colour = (name) =>
    overrides.filter(({ matcher }) => matcher.id === 'byName' && matcher.options === name)
      .flatMap(({ properties }) => properties.filter(({ id }) => id === 'color').map(({ value }) => COLOURS[value.fixedColor]))[0];
  return targets.map(({ legendFormat }, queryIndex) => ({ queryIndex, colorMode: 'fixed', colorValue: colour(legendFormat) })).filter(({ colorValue }) => colorValue);
}

const kinds = {
  stat: ({ fieldConfig: { defaults } }) => ({
    kind: 'StatChart',
    spec: { calculation: 'last-number', format: format(defaults), thresholds: thresholds(defaults.thresholds), valueFontSize: 34 },
  }),
  timeseries: ({ fieldConfig: { defaults, overrides }, targets }) => ({
    kind: 'TimeSeriesChart',
    spec: {
      // A list shows every name in the place that a table has for two.
      legend: { position: 'bottom', mode: 'list', size: 'small' },
      yAxis: { show: true, min: defaults.min, max: defaults.max, ...axis(defaults) },
      querySettings: fixedColours(targets, overrides),
      visual: {
        display: 'line',
        lineWidth: 1.5,
        areaOpacity: defaults.custom.fillOpacity / 100,
        stack: defaults.custom.stacking?.mode === 'normal' ? 'all' : 'none',
        palette: { mode: 'categorical' },
      },
    },
  }),
  table: (panel) => {
    const { fieldConfig: { defaults, overrides }, transformations, targets, options } = panel;
    const { renameByName, indexByName } = transformations.find(({ id }) => id === 'organize').options;
    const joined = transformations.find(({ id }) => id === 'joinByField')?.options.byField;
    // How Perses names a field of Grafana: labels in lower case, values with the number of their query.
    const name = (field) => {
      if (field === 'Value') return 'value';
      const of = /^Value #(\w)$/.exec(field);
      if (of) return `value #${targets.findIndex(({ refId }) => refId === of[1]) + 1}`;
      return targets.length === 1 || field === joined ? field : `${field} #1`;
    };
    const fields = Object.keys(renameByName).sort((a, b) => indexByName[a] - indexByName[b]);
    const [{ displayName, desc }] = options.sortBy;
    const columns = fields.map((field) => ({
      name: name(field),
      header: renameByName[field],
      ...(panel.gridPos.w < 24 && WIDTHS[field] && { width: WIDTHS[field] }),
      ...(field.startsWith('Value') ? { format: format(defaults), align: 'right', width: 40 + 8 * renameByName[field].length } : {}),
      ...(renameByName[field] === displayName ? { sort: desc ? 'desc' : 'asc' } : {}),
    }));
    const hidden = ['timestamp', ...targets.flatMap((_, i) => [`timestamp #${i + 1}`, `value #${i + 1}`])]
      .filter((other) => !columns.some((column) => column.name === other))
      .map((other) => ({ name: other, hide: true }));
    const mapped = overrides.flatMap(({ properties }) => properties.filter(({ id }) => id === 'mappings').flatMap(({ value }) => value));
    const cells = mapped.flatMap(({ options: of }) =>
      Object.entries(of).map(([value, { color }]) => ({ condition: { kind: 'Value', spec: { value } }, textColor: COLOURS[color] }))
    );
    const [, ...steps] = defaults.thresholds?.steps ?? [];
    for (const { value, color } of [...steps].reverse()) cells.push({ condition: { kind: 'Range', spec: { min: value } }, textColor: COLOURS[color] });
    return {
      kind: 'Table',
      spec: {
        density: 'compact',
        defaultColumnWidth: 'auto',
        columnSettings: [...columns, ...hidden],
        cellSettings: cells,
        transforms: joined
          ? [{ kind: 'MergeIndexedColumns', spec: { column: joined } }, { kind: 'JoinByColumnValue', spec: { columns: [joined] } }]
          : [],
      },
    };
  },
};

function Drawn({ panel, settings }) {
  const { x, y, w, h } = panel.gridPos;
  const place = { position: 'absolute', left: x * COLUMN, top: y * ROW, width: w * COLUMN, height: h * ROW, padding: GAP / 2, boxSizing: 'border-box' };
  if (panel.type === 'row') return <div style={{ ...place, font: '600 17px sans-serif', paddingTop: 12 }}>{panel.title}</div>;
  const instant = panel.targets.some((target) => target.instant);
  const definitions = panel.targets.map((target) => ({
    kind: 'PrometheusTimeSeriesQuery',
    spec: { minStep: '5s', query: target.expr, seriesNameFormat: target.legendFormat === '__auto' ? '' : target.legendFormat ?? '' },
  }));
  return (
    <div style={place} className="panel" data-title={panel.title}>
      <DataQueriesProvider definitions={definitions} options={{ suggestedStepMs: settings.step * 1000, mode: instant ? 'instant' : 'range' }}>
        <Panel definition={{ kind: 'Panel', spec: { display: { name: panel.title }, plugin: kinds[panel.type](panel) } }} />
      </DataQueriesProvider>
    </div>
  );
}

function Board({ board, settings }) {
  const height = Math.max(...board.panels.map(({ gridPos: { y, h } }) => y + h)) * ROW;
  const timeRange = { start: new Date((settings.end - settings.range) * 1000), end: new Date(settings.end * 1000) };
  const resource = { kind: 'Dashboard', metadata: { name: 'board', project: 'board' }, spec: { panels: {}, layouts: [], variables: [], duration: '1h' } };
  return (
    <ThemeProvider theme={theme}>
      <ChartsProvider chartsTheme={charts}>
        <SnackbarProvider anchorOrigin={{ vertical: 'bottom', horizontal: 'right' }}>
          <QueryClientProvider client={client}>
            <PluginRegistry pluginLoader={loader} defaultPluginKinds={{ Panel: 'TimeSeriesChart', TimeSeriesQuery: 'PrometheusTimeSeriesQuery' }}>
              <TimeRangeProvider refreshInterval="0s" timeRange={timeRange}>
                <VariableProvider>
                  <DatasourceStoreProvider dashboardResource={resource} datasourceApi={api}>
                    <h1 style={{ font: '600 22px sans-serif', margin: '12px 4px 4px' }}>{board.title}</h1>
                    <div id="board" style={{ position: 'relative', width: 24 * COLUMN, height }}>
                      {board.panels.map((panel) => <Drawn key={panel.id} panel={panel} settings={settings} />)}
                    </div>
                  </DatasourceStoreProvider>
                </VariableProvider>
              </TimeRangeProvider>
            </PluginRegistry>
          </QueryClientProvider>
        </SnackbarProvider>
      </ChartsProvider>
    </ThemeProvider>
  );
}

const { board, settings } = await (await fetch('/board.json')).json();
createRoot(document.getElementById('root')).render(<Board board={board} settings={settings} />);
